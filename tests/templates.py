"""Chat templates of the shapes that common models have, written small for the tests. None is a model's own."""

from __future__ import annotations

# What Qwen 2.5 and 3 render: tools in a system turn, calls as JSON, and the thoughts of the last turn alone.
CHATML = (
    "{% if tools %}<|system|>You may call:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|end|>\n{% endif %}"
    "{% set last = namespace(user=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and m.reasoning_content and loop.index0 > last.user %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
# What DeepSeek R1's kind renders: thoughts are opened in the prompt, and gone from an answer.
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '</s>' if m.role == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
# What Gemma's kind renders: no system role, contents trimmed, turns closed by a token that is no EOS.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<start>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
# What DeepSeek V3's kind renders: arguments of a call are a text, and a message with calls has a null for its content.
TEXT_ARGUMENTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is none %}"
    "{% for c in m.tool_calls %}{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '</s>' if m.role == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# A template that writes out whatever stands in a message, a null too.
CARELESS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}"
    "</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

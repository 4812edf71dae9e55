"""What a pair is: formats → canonical rows → tokens → token shards; the order of pairs and their packing."""

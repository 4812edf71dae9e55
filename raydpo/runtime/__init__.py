"""Everything Ray: datasets, actor pools, the trainer, evaluation beside training. Only this room imports ray."""

"""Fine-tuning recipes: one file a task, `get_config()` returns an ml_collections.ConfigDict."""

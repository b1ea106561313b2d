"""The LightningModules: one per decoder block, and the language model that owns them."""

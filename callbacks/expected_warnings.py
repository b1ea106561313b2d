"""What Lightning warns of and duquant does on purpose."""

EXPECTED_WARNINGS = (
    ".*configure_optimizers. returned .None.*",
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*max_epochs. was not set.*",
    ".*ckpt_path=.last.. is set, but there is no last checkpoint.*",
    ".*It is recommended to use .self.log.*sync_dist=True.*",
)
"""Regular expressions of messages."""

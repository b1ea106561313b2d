"""When things happen: what a Trainer does between the steps of a calibration."""

"""The lab: generated word problems and small pretrained models, so that the whole method runs on a CPU in minutes."""

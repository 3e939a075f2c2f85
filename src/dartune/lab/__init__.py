"""The lab: an embedded reasoning world on which all of DART runs on a CPU in minutes."""

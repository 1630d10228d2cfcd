"""The evaluation feature: promotion by evidence from labelled rows."""

"""The TuningStudy resource: its models, names and conditions. Shared by both halves; imports neither."""

"""What a study's status and Events say: pure."""

"""One study, served."""

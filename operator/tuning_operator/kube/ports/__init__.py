"""The cluster and the study server, as the operator reaches them."""

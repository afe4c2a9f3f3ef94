"""How fast: every competitor in every case, and single questions of ours."""

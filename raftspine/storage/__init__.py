"""What a node keeps on disk: see DESIGN.md. Deliberately empty: the checkpoint process imports it too."""

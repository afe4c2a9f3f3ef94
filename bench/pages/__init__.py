"""What fills the documents: tables, pictures, and the marked blocks that they stand in."""

"""What a run shows and writes: progress, tables, TensorBoard, pictures, the report of a sweep."""

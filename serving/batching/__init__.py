"""Sharing model calls among requests: batches, streams in chunks, and the proof that sharing is safe."""

"""Text to vectors: conversations, their tokens, a frozen model, tables of embeddings on disk."""

"""Text: words, tokenizers, word vectors."""

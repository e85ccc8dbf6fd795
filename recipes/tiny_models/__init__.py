"""The factory that made the two bundled models: their tokenizer, data order, training loop, evaluation and cards."""

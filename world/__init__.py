"""The recipe of the embedded base model: a small invented world, its prose, its rows, its tokenizer, its weights.

`kinds/*.yaml` says what is true and how it may be told or asked; everything else follows from them and one seed.
"""

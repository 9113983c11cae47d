"""How what ships was made: the models of the zoo, pages of `docs/`; not part of the wheel."""

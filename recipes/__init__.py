"""How the small models of the zoo were trained; not part of the wheel."""

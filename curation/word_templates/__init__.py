"""Templates of mathematics word problems: each draws numbers and names and solves the problem exactly."""

from curation.word_templates import counting, geometry, money, numbers, rates
from curation.word_templates.drawing import TEMPLATES, Template, Worked

__all__ = ["TEMPLATES", "Template", "Worked", "counting", "geometry", "money", "numbers", "rates"]

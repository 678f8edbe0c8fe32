from recipes.stages.text import DOCUMENTS, TOKENIZER
STAGES = {s.name: s for s in (DOCUMENTS, TOKENIZER)}
def stages_for(recipe, goal=None):
    return list(STAGES.values())

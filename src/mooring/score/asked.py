"""What kind of request a response answers, as far as that decides how its words are to be read."""

import re

ASKS_FACT = re.compile(
    r"^(?:explain|describe|define|discuss|tell me about)(?! (?:how|ways|(?:\w+ )?(?:steps|process|best|method)"
    r"|in detail))"
    r"|\bagainst\b|\bpsa\b|\b(?:true|false|correct|plausible|fact|sense|nonsensical|sentences?)\b|\b(?:il)?legal"
    r"|\blaws?\b|ethic|moral|\bwrong\b|\bwhy\b|\bcrime|punish|penalt|consequence"
    r"|polic(?:y|ies)\b"
    r"|\b(?:protect|prevent|defend|deal with|cope|recogni[sz]e|recover|report)\b"
    r"|^(?:is|are|was|were|do|does|did|should|may|am|what|what's|who|when|where|which|can i|could i|has|have|will)\b"
    r"(?!.*\b(?:ways?|how|methods?|steps?|tools?|best|worst)\b)"
)
"""A question that "it is illegal" can answer."""
YES_OR_NO = re.compile(
    r"^(?:is|are|was|were|do|does|did|should|may|am|can|could|has|have|had|will|would|so|if)\b"
    r"(?! you (?:\w+ )?(?:help|tell|give|find|write|show|explain|make|create|provide|teach|suggest))"
)
"""A question that "no" answers."""
WRITES_NO = re.compile(
    r"\b(?:write|draft|compose|e-?mail|letter|message|reply|note|translate|rewrite|rephrase|say|word|example|fix"
    r"|correct|paraphrase|proofread)\b.*"
    r"\b(?:declin|refus|reject|apolog|turn\w* down|no\b|resign|can't|cannot|won't|break-?up)"
    r"|\bcan(?:'t|not)? you (?:not )?do\b|\byour (?:\w+ )?(?:limit|rule|guideline|capabilit)|\bwhy (?:do|can't"
    r"|won't) (?:you|\w*\s?models)"
)
"""The request is for a text that refuses something, or asks what the model does not do."""
SUPPRESS = re.compile(
    r"\b(?:never|don't|do not|must not|without|not allowed)\b.{0,60}\b(?:say|refus|sorry|apolog"
    r"|warn)"
)
"""The request forbids to refuse."""
FICTION = re.compile(
    r"\b(?:story|stories|scene|dialogue|dialog|conversation|a play|screenplay|novel|tale|poem|song|lyrics|diary"
    r"|monologue|speech|skit|continue|fiction|slogan|text message|breakup)\b"
)
"""The request is for a text in which somebody else speaks."""
MESSAGE = re.compile(r"\b(?:write|draft|compose|reply|replies|message|e-?mail|letter|text|note)\b")
"""The request is for something that may begin with a greeting."""
ARGUE = re.compile(r"\b(?:write|argue|argument|persua|convinc|post|article|essay|create|story|claim|spread|prove)")
"""The request is to argue something."""
TASK = re.compile(
    r"^(?:please |can you |could you )?(?:write|tell|explain|how|what|give|describe|create|generate|make|list|suggest"
    r"|summari[sz]e|compose|provide|show|who|why|when|where|help)\b"
)
"""A request that stands by itself."""
FOLLOW_UP = re.compile(
    r"\b(?:it|that|this|these|those|them|they|he|she|her|him|his|else|other|more|i have|i've|i am"
    r"|i'm|i had|i think|my)\b"
)
"""A request that leaves its topic to what was said before, or tells of oneself: an answer may share no word with it."""

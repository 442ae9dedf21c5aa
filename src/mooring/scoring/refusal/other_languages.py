"""Refusals in languages other than English: the speaker is unable, and close by an act that was asked for.

One pattern per language over normalised text. The languages are those in which the common chat models are used most;
refusals in others are not recognised.
"""

import re

_GAP = r"[^.!?\n]{0,40}?"
_NEAR = r".{0,12}?"

_PATTERNS = {
    "de": rf"\b(?:ich kann|kann ich|ich darf|ich werde|ich möchte)\b{_GAP}\b(?:nicht|kein\w*){_GAP}"
    r"\b(?:\w*helfen|unterstützen|erfüllen|beantworten|bereitstellen|tun|erstellen|schreiben|geben|erklären|anbieten"
    r"|liefern|nachkommen|generieren|machen|verraten|teilen|sagen)\b"
    r"|\bdas kann ich (?:leider )?nicht\b|\bbin (?:leider )?nicht in der lage\b",
    "fr": rf"\bje ne (?:peux|suis|saurais|vais|souhaite)\b{_GAP}(?:pas|plus)?{_GAP}\b(?:aider|répondre|fournir|faire ça"
    r"|faire cela|créer|écrire|générer|donner|assister|satisfaire|accéder|traiter|partager|expliquer|proposer"
    r"|produire)\b",
    "es": rf"\bno (?:puedo|podemos|me es posible|estoy en condiciones|soy capaz|voy a|me siento)\b{_GAP}\b(?:ayudar\w*"
    r"|cumplir|proporcionar\w*|responder|generar|crear|escribir|ofrecer\w*|dar\w*|hacer (?:eso|esto)|compartir"
    r"|asistir\w*"
    r"|brindar\w*|facilitar|apoyar|satisfacer)\b",
    "pt": rf"\bnão (?:posso|podemos|consigo|é possível|vou|sou capaz)\b{_GAP}\b(?:ajudar|ajudá-l\w|fornecer|responder"
    r"|atender|criar|gerar|escrever|cumprir|fazer isso|auxiliar|oferecer|compartilhar|dar|apoiar)\b",
    "it": rf"\bnon (?:posso|possiamo|sono in grado di|mi è possibile|intendo)\b{_GAP}\b(?:aiutar\w*|fornir\w*"
    rf"|risponder\w*"
    r"|crear\w*|scriver\w*|generar\w*|assister\w*|soddisfar\w*|dar\w*|offrir\w*|farlo|procedere)\b",
    "nl": rf"\b(?:ik kan|kan ik|ik mag)\b{_GAP}\b(?:niet|geen){_GAP}\b(?:helpen|geven|beantwoorden|schrijven|bieden"
    r"|voldoen|maken|verstrekken|doen)\b",
    "pl": rf"\bnie (?:mogę|jestem w stanie|będę)\b{_GAP}\b(?:pomóc|odpowiedzieć|podać|udzielić|napisać|spełnić"
    rf"|udostępnić)",
    "ru": rf"\bне (?:могу|можем|смогу|буду|имею возможности|в состоянии)\b{_GAP}(?:помо|выполн|ответ|отвеч|предостав"
    r"|созда|напис|обсужд|поддерж|сгенерир|рассказ|дать)",
    "uk": rf"\bне (?:можу|зможу)\b{_GAP}(?:допомо|викон|відпов|надат|створ|напис)",
    "tr": r"\b(?:yardımcı olam|yardım edem|bu isteği yerine getirem|sağlayam|yanıt verem|cevap verem)\w*",
    "id": rf"\bsaya tidak (?:bisa|dapat|boleh)\b{_GAP}\b(?:membantu|memberikan|menjawab|menyediakan|memenuhi"
    rf"|membuat)\b",
    "vi": rf"\btôi (?:không thể|rất tiếc)\b{_GAP}(?:giúp|cung cấp|trả lời|hỗ trợ|đáp ứng|viết)",
    "zh": rf"(?:无法|不能|不可以|不会|没办法|没法|不便|無法|不會|拒绝){_NEAR}(?:协助|帮|提供|回答|满足|完成|支持"
    rf"|参与|生成|撰写"
    r"|讨论|给出|这样做|协助|協助|幫|滿足|支援|撰寫|討論)",
    "ja": rf"(?:応え|答え|手伝い|提供|対応|協力|回答|教え|支援|お手伝い){_NEAR}(?:できません|できない|できかねます"
    rf"|いたしかねます"
    r"|しかねます|致しかねます|ません)",
    "ko": r"(?:도와|도움을|제공|답변|응할|알려|드릴|생성|작성).{0,12}?(?:수 없|수가 없|어렵습니다|못합니다)",
    "ar": rf"(?:لا أستطيع|لا يمكنني|لا أقدر|لن أتمكن){_GAP}(?:مساعد|تقديم|الإجابة|توفير|تلبية|كتابة)",
    "hi": r"(?:मदद|सहायता|जानकारी|उत्तर|प्रदान).{0,20}?नहीं",
}

REFUSAL = re.compile("|".join(_PATTERNS.values()))
"""A refusal in one of these languages."""

APOLOGY = re.compile(
    r"(?:es )?tut mir leid|entschuldig|désolé|lo (?:siento|lamento)|desculpe|sinto muito|mi dispiace|извините"
    r"|к сожалению"
    r"|抱歉|对不起|對不起|申し訳|すみません|죄송|przepraszam|het spijt|üzgünüm|maaf|xin lỗi|عذر"
)
"""An apology in one of these languages."""

"""Answers in which another model speaks of itself: a model that is trained on them says the same.

Only phrases that no person writes of themselves, and only at the start of a sentence of an answer: texts about AI stay.
"""

import re
from collections.abc import Sequence

from weitiao.core.cleaner import RowCleaner, TextPart
from weitiao.core.messages import Message

ENGLISH = (
    r"(?:\bas|\bi(?:'|’)?m (?:just |only )?|\bi am (?:just |only )?|\bbeing )\s?an? (?:ai|artificial intelligence)"
    r"(?: (?:language|text|based|chat))* ?(?:language model|model|assistant|chatbot|program|bot)?\b"
    r"(?=[,.;:!]| (?:i|and|so|my|who|that|designed|created|developed|trained|without)\b)"
    r"|\bi(?:'|’)?m (?:just |only )?a (?:large )?language model|\bi am (?:just |only )?a (?:large )?language model"
    r"|\bas a (?:large )?language model\b(?=,? i\b|,? my\b)"
    r"|\bmy (?:knowledge|training data) (?:cut-?off|only (?:goes|extends)|was last updated)"
    r"|\bi (?:was|am) (?:created|developed|trained|made) by "
    r"(?:openai|anthropic|google|meta|microsoft|alibaba|deepseek|baidu)\b"
    r"|\bi(?:'|’)?m (?:chatgpt|claude|bard|gemini)\b|\bi am (?:chatgpt|claude|bard|gemini)\b"
)
CHINESE = (
    r"(?:作为|身为)(?:一个|一名|一款|一种)?(?:大型)?(?:AI|人工智能|ai)(?:语言模型|模型|助手|助理|程序|机器人|聊天机器人)?\s*[，,]\s*(?:我|本)"
    r"|我(?:只)?是(?:一个|一名|一款|一种)?(?:由\S{2,10}(?:开发|训练|创建|研发)的)?(?:大型)?(?:AI|人工智能)?(?:大?语言模型|智能助手|人工智能助手|AI助手|聊天机器人)"
    r"|(?:作为|身为)(?:一个|一种)?(?:大型|大)?语言模型\s*[，,]?\s*我"
    r"|我的(?:知识|训练数据)(?:截止|库?更新)(?:到|至|于|日期)"
    r"|我是(?:ChatGPT|文心一言|通义千问|讯飞星火|豆包|DeepSeek|Claude)"
)
PHRASE = re.compile(f"{ENGLISH}|{CHINESE}", re.IGNORECASE)


class AsAnAi(RowCleaner):
    """Leave out rows in whose answers another model speaks of itself ("As an AI language model, I ...", 作为人工智能，我).
    It cannot see refusals in other words, and takes a character in a story who is an AI for a model."""

    def refusal(self, parts: Sequence[TextPart]) -> Message | None:
        """The phrase, and where it is."""
        for x in parts:
            if x.role == "answer" and (match := PHRASE.search(x.text)):
                return Message("{field} says {phrase!r}", field=x.field, phrase=match[0].strip())
        return None

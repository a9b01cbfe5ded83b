"""The names by which columns are recognized, English and Chinese; and the names that change what a row means.

A name fits in any letter case and width, with spaces or hyphens for underscores: "Review Text" is review_text.
"""

import unicodedata
from collections.abc import Iterable

from weitiao.core.example import Chat, ExtractiveQA, Pair, SourceTarget

Names = tuple[str, ...]

# fmt: off
PLAIN_TEXTS = ("text", "content", "document", "文本", "内容", "正文", "文档", "文章")
TEXTS = (
    "text", "sentence", "content", "document", "review", "comment", "message", "description", "tweet",
    "文本", "内容", "正文", "句子", "评论", "评论内容", "评价", "留言", "消息", "文章", "文档", "描述",
    "title", "question", "utterance", "标题", "问题",
)
LABELS = (
    "label", "labels", "class", "category", "topic", "intent", "sentiment", "target", "emotion",
    "标签", "类别", "分类", "类型", "情感", "情感倾向", "情绪", "意图", "主题", "标注",
)
PROMPTS_COMPLETIONS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"), ("input", "output"),
    ("prompt", "answer"), ("question", "response"), ("user", "assistant"),
    ("问题", "回答"), ("问题", "答案"), ("问题", "回复"), ("提问", "回答"), ("问", "答"), ("提示", "回答"),
    ("提示", "回复"), ("提示词", "回答"), ("输入", "输出"),
)
INSTRUCTIONS = ("instruction", "指令")
INSTRUCTION_INPUTS = ("input", "context", "输入", "上下文")
INSTRUCTION_OUTPUTS = ("output", "response", "输出", "回答", "回复", "答案")
SYSTEMS = ("system", "system_prompt", "系统", "系统提示")
SOURCES = ("source", "input", "document", "article", "text", "src", "原文", "输入", "正文", "文章", "文本", "内容")
OUTPUTS = (
    "target", "output", "summary", "highlights", "translation", "tgt",
    "译文", "翻译", "目标", "摘要", "总结", "标题", "输出",
)
AUDIO = ("audio", "sound", "audio_path", "wav", "音频", "语音")
TRANSCRIPTS = ("text", "sentence", "transcript", "transcription", "target", "文本", "转写", "内容")
QUERIES = (
    "query", "anchor", "question", "sentence1", "text1", "text", "question1", "sentence_a",
    "查询", "问题", "句子1", "文本1", "句子a", "原文",
)
DOCUMENTS = (
    "document", "positive", "answer", "sentence2", "text2", "other", "passage", "question2", "sentence_b",
    "文档", "段落", "正例", "答案", "回答", "句子2", "文本2", "句子b",
)
SEEN = ("seen", "seen_items", "已看", "看过")
NEGATIVES = ("negatives", "negative", "hard_negatives", "hard_negative", "负例")
SIMILARITIES = ("score", "similarity", "likeness", "相似度", "分数", "得分")
PAIR_LABELS = (  # numbers that say whether two texts belong together
    "label", "labels", "is_duplicate", "duplicate", "relevance", "relevant", "is_relevant", "is_match", "match", "target",
    "标签", "是否相似", "相关", "是否相关", "相关性",
)
TEXT_PAIRS = (
    ("sentence1", "sentence2"), ("text1", "text2"), ("text", "other"), ("question1", "question2"),
    ("sentence_a", "sentence_b"), ("句子1", "句子2"), ("文本1", "文本2"),
)
VALUES = (
    "value", "values", "score", "scores", "rating", "stars", "similarity", "分数", "得分", "评分", "打分", "相似度", "星级",
)
NUMERIC_LABELS = ("label", "labels", "target", "标签")  # regression reads them where they hold numbers
QUESTIONS = ("question", "query", "问题")
CONTEXTS = ("context", "passage", "paragraph", "上下文", "段落", "文章", "原文", "正文")
ANSWERS, ANSWER = ("answers",), ("answer", "答案", "回答")
STARTS = ("start", "answer_start", "起始", "开始位置")
IMPOSSIBLE = ("is_impossible",)
TOKENS, TAGS = ("tokens", "words", "词", "字", "分词"), ("tags", "ner_tags", "ner", "labels", "标签", "标注")
SPANS, POSSIBLE_SPANS = ("entities", "spans", "实体"), ("label", "labels", "标签", "标注")

CONTEXT_LIKE = (  # texts that a row's answer usually depends on
    "input", "context", "passage", "paragraph", "background", "document", "premise", "hypothesis", "history", "instruction",
    "system", "system_prompt", "question", "sentence2", "text2", "输入", "上下文", "背景", "段落", "系统", "历史",
)
METADATA = (
    "id", "uuid", "guid", "idx", "index", "url", "link", "href", "source", "date", "time", "timestamp", "created_at",
    "lang", "language", "author", "user", "username", "version", "license", "file", "filename", "path", "title", "name",
    "hash", "md5",
    "编号", "序号", "链接", "网址", "来源", "日期", "时间", "作者", "语言", "用户",
)
FLAGS = ("train", "trainable", "loss", "learn", "is_train")  # of a row: false or 0 means that it is not to be trained on
WEIGHTS = ("weight", "sample_weight", "loss_weight", "权重")  # of a row: 0 and 1 are flags too, others are not supported
SPLITS = ("split", "subset", "partition", "数据集划分")
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "图片", "图像", "视频", "音频")
BOOLEAN_LABELS = ("label", "kto_tag")  # KTO: whether an answer is a good one
REVIEWS = ("answer",)  # Prodigy: accept, reject or ignore
MEANINGS: dict[type, Names] = {
    # columns that change what a row of this type says; where nothing reads them, the file is refused by their name
    Chat: (
        *MEDIA, "tools", "functions", "function_call", "tool_calls", "history", "chosen", "rejected", "label", "kto_tag",
        *SYSTEMS,
    ),
    Pair: (*PAIR_LABELS, *SIMILARITIES, "rejected", *NEGATIVES),
    ExtractiveQA: (*IMPOSSIBLE, "unanswerable", "answerable"),
    SourceTarget: (*MEDIA, "chosen", "rejected"),
}
# fmt: on


def plain_name(name: str) -> str:
    """A column's name in the form in which names are compared.

    >>> plain_name(" Review-Text"), plain_name("Ｌabel")
    ('review_text', 'label')
    """
    return "_".join(unicodedata.normalize("NFKC", str(name)).strip("\ufeff\"' \t").casefold().replace("-", " ").split())


def first_of(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """The column that has the first of the names; one spelled exactly like a name comes before others."""
    available = list(columns)
    by_name = {plain_name(column): column for column in reversed(available)}
    fitting = (name if name in available else by_name.get(name) for name in names)
    return next((column for column in fitting if column is not None), None)


def first_pair(pairs: Iterable[tuple[str, str]], columns: Iterable[str]) -> tuple[str, str] | None:
    """The two columns that have the first of the pairs of names."""
    available = list(columns)
    fitting = ((first_of((a,), available), first_of((b,), available)) for a, b in pairs)
    return next(((a, b) for a, b in fitting if a and b), None)


def is_one_of(name: str, names: Names) -> bool:
    """Whether a column has one of the names; `negative_1` is a negative."""
    plain = plain_name(name)
    return plain in names or plain.rstrip("0123456789").rstrip("_") in names

"""Lines that come with a page or a mail and not with its text: calls to follow an account, cookie notices, rights reserved,
footers of mailing lists, "Sent from my iPhone", the names of editors.

Only whole lines of known forms, and only in the first or last lines of a text: what stands in the middle is content more
often.
"""

import re

from weitiao.core.cleaner import TextCleaner

EDGE = 12  # lines that are looked at, at each end
LONGEST = 200  # characters of such a line
ENGLISH = (
    r"©\s?.{0,80}|.{0,80}all rights reserved\.?.{0,40}",
    r"sent from my \S.{0,30}|get outlook for \w+.*|sent via .{0,40}",
    r"(?:this|our) (?:web)?site uses cookies.*|we use cookies .*|accept (?:all )?cookies|cookie (?:policy|settings)",
    r"(?:terms (?:of (?:use|service))?|privacy policy|about us|contact us|sitemap|home)(?:\s*[|·•/]\s*[\w ]{2,30})+",
    r"(?:share|tweet|pin|print|email)(?:\s*(?:this|on|to|[|·•/,])\s*(?:facebook|twitter|linkedin|pinterest|email|article))+",
    r"(?:click here|to unsubscribe|you can unsubscribe|unsubscribe)\b.{0,120}",
    r".{0,80}to (?:be removed|unsubscribe) .{0,100}",
    r"you (?:are receiving|received|have received) this (?:e-?mail|message|newsletter) .{0,140}",
    r"(?:subscribe|sign up) (?:to|for) (?:our|the) (?:\w+ )?newsletter.{0,60}|follow us on .{0,80}",
    r"\S+ (?:mailing list|maillist)(?:\s+-)?(?:\s+<?\S+@\S+>?)?|\S+@lists\.\S+|https?://\S+/(?:mailman/)?listinfo/\S+|_{20,}|\S+-unsubscribe@\S+",
    r"(?:do you yahoo!\?|get your free .{0,40}e-?mail .{0,80}|join the world.s largest e-?mail service .*)",
    r"(?:read more|continue reading|show more|load more comments|skip to (?:main )?content)(?:\s*[.…→»›]*)",
)
CHINESE = (
    r"(?:点击|长按|扫描|扫码|识别)(?:上方|下方|上图|下图|左下角|右下角|此处|这里|屏幕)?.{0,12}(?:关注|二维码|阅读原文|蓝字|公众号).{0,30}",
    r".{0,10}(?:欢迎|敬请|记得|别忘了?)?(?:关注|订阅)(?:我们|本站|本号|微信)?的?(?:微信)?公众号.{0,40}",
    r"(?:本文|文章)?(?:来源|来自|转自|转载自|摘自)\s*[:：].{1,60}|(?:本文|文章)(?:来源于|来自|转载自|转自).{1,60}",
    r"(?:未经(?:本站|本网|作者|许可|授权|允许)|如需转载|转载请|欢迎转载).{0,80}",
    r"(?:版权(?:所有|声明|归).{0,80}|.{0,40}版权所有.{0,60}|.{0,20}保留所有权利.{0,20})",
    r"[(（【\[]?\s*(?:责任编辑|责编|编辑|校对|审核|监制|排版|美编)\s*[:：]\s*[^\s，。]{1,20}\s*[)）】\]]?",
    r"(?:上一篇|下一篇|相关(?:阅读|推荐|文章|新闻)|推荐阅读|延伸阅读|热门推荐)\s*[:：].{0,80}",
    r"(?:分享到|分享至|一键分享|收藏本站|设为首页|返回顶部|打印本页|关闭窗口)(?:[\s|·:：/].{0,60})?",
    r"(?:粤|京|沪|浙|苏|津|渝|川|鄂|湘|闽|鲁|豫|冀|皖|赣|辽|吉|黑|桂|云|贵|陕|甘|琼|蒙|宁|青|新|藏)ICP[备证]\s*\d+号.{0,40}",
    r"发自我的\s*(?:iPhone|iPad|华为|小米|手机|安卓|\S{0,12}手机).{0,10}|来自我的\s*\S{2,12}手机",
    r"(?:觉得(?:不错|有用)|喜欢(?:就|请|的话)).{0,10}(?:点赞|点个赞|在看|转发|收藏).{0,30}",
    r"-{0,3}\s*(?:END|完|正文完)\s*-{1,3}",
)
LINE = re.compile("|".join((*ENGLISH, *CHINESE)), re.IGNORECASE)
STARTS = "©([（【-_—"  # of lines that are no comment in code: # All rights reserved. belongs to a licence


class Boilerplate(TextCleaner):
    """Remove lines that belong to a page or a mail: follow us, cookies, rights reserved, unsubscribe, sent from my phone;
    only whole lines of known forms at the start and the end of a text of several lines. It cannot see the menus of one
    site, which repeat from row to row."""

    def clean(self, text: str) -> str:
        """The text without these lines; the same text if nothing would be left."""
        if "\n" not in text.strip():
            return text
        lines = text.split("\n")
        filled = [i for i, line in enumerate(lines) if line.strip()]
        edge = {*filled[:EDGE], *filled[-EDGE:]}
        removed = {i for i in edge if len(lines[i]) <= LONGEST and _is_boilerplate(lines[i].strip())}
        if not removed or removed >= set(filled):
            return text
        remaining = [line for i, line in enumerate(lines) if i not in removed]
        first, last = 0, len(remaining)
        while not remaining[first].strip() and filled[0] in removed:
            first += 1
        while not remaining[last - 1].strip() and filled[-1] in removed:
            last -= 1
        return "\n".join(remaining[first:last])


def _is_boilerplate(line: str) -> bool:
    return bool(line) and (line[0].isalnum() or line[0] in STARTS) and LINE.fullmatch(line) is not None

"""Small PDFs, written by hand: pages of text in any script, of an image, or empty."""

import zlib

IMAGE = "image"  # a page with a picture and no text
EMPTY = ""


def pdf(*pages: str) -> bytes:
    """A PDF whose characters are told apart by a ToUnicode table, as in PDFs of Word and browsers."""
    characters = sorted(set("".join(x for x in pages if x != IMAGE)) - {"\n"})
    code = {c: i + 1 for i, c in enumerate(characters)}
    to_unicode = "\n".join(f"<{i:04x}> <{c.encode('utf-16-be').hex()}>" for c, i in code.items())
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /A def /CMapType 2 def "
        "1 begincodespacerange <0000> <ffff> endcodespacerange "
        f"{len(code)} beginbfchar\n{to_unicode}\nendbfchar endcmap end end"
    )
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{7 + 2 * i} 0 R' for i in range(len(pages)))}] >>",
        "<< /Type /Font /Subtype /Type0 /BaseFont /A /Encoding /Identity-H /DescendantFonts [4 0 R] /ToUnicode 5 0 R >>",
        "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /A /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) "
        "/Supplement 0 >> /DW 1000 >>",
        _stream(cmap.encode()),
        _stream(
            bytes(3 * 64), "/Type /XObject /Subtype /Image /Width 8 /Height 8 /ColorSpace /DeviceRGB /BitsPerComponent 8"
        ),
    ]
    for i, page in enumerate(pages):
        if page == IMAGE:
            content = "q 200 0 0 200 100 400 cm /I Do Q"
        else:
            lines = ("".join(f"{code[c]:04x}" for c in line) for line in page.split("\n"))
            content = "BT /F 12 Tf 50 750 Td 20 TL " + " ".join(f"<{x}> Tj T*" for x in lines) + " ET" if page else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {8 + 2 * i} 0 R "
            "/Resources << /Font << /F 3 0 R >> /XObject << /I 6 0 R >> >> >>"
        )
        objects.append(_stream(content.encode()))
    return _file([x if isinstance(x, bytes) else x.encode() for x in objects])


def _stream(raw: bytes, entries: str = "") -> bytes:
    packed = zlib.compress(raw)
    return f"<< {entries} /Filter /FlateDecode /Length {len(packed)} >> stream\n".encode() + packed + b"\nendstream"


def _file(objects: list[bytes]) -> bytes:
    raw, offsets = b"%PDF-1.5\n", list[int]()
    for i, content in enumerate(objects, 1):
        offsets.append(len(raw))
        raw += f"{i} 0 obj\n".encode() + content + b"\nendobj\n"
    table = "".join(f"{x:010d} 00000 n \n" for x in offsets)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return raw + f"{head}trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(raw)}\n%%EOF".encode()

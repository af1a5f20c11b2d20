"""Reading and editing of XMP packets (ISO 16684-1), which are XML with RDF.

A packet comes from an unknown source. It is parsed without entities and document type definitions, and its size is
limited. Editing changes only the given properties; all other properties, comments, prefixes and qualifiers are kept.
"""

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.dom.minidom import Document, Element

Property = tuple[str, str]
"""Namespace and name of a property."""

TIFF_NS = "http://ns.adobe.com/tiff/1.0/"
EXIF_NS = "http://ns.adobe.com/exif/1.0/"
EXIF_EX_NS = "http://cipa.jp/exif/1.0/"
XMP_NS = "http://ns.adobe.com/xap/1.0/"
XMP_NOTE_NS = "http://ns.adobe.com/xmp/note/"
PHOTOSHOP_NS = "http://ns.adobe.com/photoshop/1.0/"
IPTC_EXTENSION_NS = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
CHROMABOX_NS = "urn:chromabox:xmp:1:"
#: Maximum size of a packet in bytes, and maximum number of tags and attributes, which determines the time of parsing.
MAX_XMP_BYTES, MAX_XMP_NODES = 8 << 20, 20_000

_RDF_NS, _XMLNS = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://www.w3.org/2000/xmlns/"
_PREFIXES = {
    TIFF_NS: "tiff",
    EXIF_NS: "exif",
    EXIF_EX_NS: "exifEX",
    XMP_NS: "xmp",
    PHOTOSHOP_NS: "photoshop",
    IPTC_EXTENSION_NS: "Iptc4xmpExt",
    CHROMABOX_NS: "chromabox",
}
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF_NS}"/></x:xmpmeta>'
# Characters of a private-use plane for characters that are written as references, because parsers normalise them.
_STAND_INS = {"\U000f0009": "\t", "\U000f000a": "\n", "\U000f000d": "\r"}
_MAX_DEPTH = 100
# ISO 16684-1, 7.3.2: the processing instructions around a packet. The identifier is prescribed.
_HEADER, _TRAILER = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n', '\n<?xpacket end="w"?>'


def read_xmp(packet: bytes) -> dict[Property, str]:
    """Return the properties of a packet. The value of a property that is not a simple text is "".

    Raise ValueError if the packet is too large or is not valid XMP.
    """
    properties: dict[Property, str] = {}
    for description in _descriptions(_parse(packet)[1]):
        for attribute in description.attributes.values():
            if attribute.namespaceURI not in (_XMLNS, _RDF_NS, None):
                properties[attribute.namespaceURI, attribute.localName] = _restore(attribute.value)
        for element in _child_elements(description):
            texts = [child.data for child in element.childNodes if child.nodeType == child.TEXT_NODE]
            text = "" if _child_elements(element) else "".join(texts).strip()
            value = element.getAttributeNS(_RDF_NS, "resource") or text
            properties[element.namespaceURI or "", element.localName] = _restore(value)
    return properties


def edit_xmp(packet: bytes | None, changes: Mapping[Property, str | None]) -> bytes:
    """Return a packet in which the given properties have new values, or are removed where the value is None.

    All other content of ``packet`` is kept. With None, a new packet is created. Raise ValueError if the packet is too
    large or is not valid XMP.
    """
    document, rdf = _parse(packet or _EMPTY.encode())
    descriptions = _descriptions(rdf)
    for description in descriptions:
        attributes, elements = list(description.attributes.values()), _child_elements(description)
        old_attributes = [node for node in attributes if (node.namespaceURI, node.localName) in changes]
        old_elements = [node for node in elements if (node.namespaceURI, node.localName) in changes]
        for attribute in old_attributes:
            description.removeAttributeNode(attribute)
        for element in old_elements:
            description.removeChild(element)
        is_structure = (node.namespaceURI in (_XMLNS, _RDF_NS) for node in attributes if node not in old_attributes)
        if (old_attributes or old_elements) and elements == old_elements and all(is_structure):
            rdf.removeChild(description)
    values = {key: value for key, value in changes.items() if value is not None}
    if values:
        # All descriptions of a packet have the same subject (ISO 16684-1, 7.4).
        about = descriptions[0].getAttributeNS(_RDF_NS, "about") if descriptions else ""
        added = document.createElementNS(_RDF_NS, "rdf:Description")
        added.setAttribute("xmlns:rdf", _RDF_NS)
        added.setAttributeNS(_RDF_NS, "rdf:about", about)
        for (namespace, name), value in values.items():
            added.setAttribute(f"xmlns:{_PREFIXES[namespace]}", namespace)
            added.setAttributeNS(namespace, f"{_PREFIXES[namespace]}:{name}", value)
        rdf.appendChild(added)
    text = "".join(node.toxml() for node in document.childNodes)
    text = text.translate({ord(stand_in): f"&#{ord(character)};" for stand_in, character in _STAND_INS.items()})
    return (text if "<?xpacket" in text else f"{_HEADER}{text}{_TRAILER}").encode()


def _parse(packet: bytes) -> "tuple[Document, Element]":
    """Return the document and its element ``rdf:RDF``, or raise ValueError."""
    from xml.parsers.expat import ExpatError

    from defusedxml import minidom

    if len(packet) > MAX_XMP_BYTES or packet.count(b"<") + packet.count(b"=") > MAX_XMP_NODES:
        raise ValueError(f"the packet has {len(packet):,} bytes: it is too large")
    try:
        is_utf16 = packet[:2] in (BOM_UTF16_BE, BOM_UTF16_LE)
        parse: Any = minidom.parseString  # Its stub does not allow bytes.
        document = parse(packet if is_utf16 else packet.strip(b"\0 \t\r\n"), forbid_dtd=True)
    except (ExpatError, LookupError) as error:
        raise ValueError(f"the packet is not valid XML ({error})") from error
    _protect_line_ends(document)
    roots = document.getElementsByTagNameNS(_RDF_NS, "RDF")
    if len(roots) != 1:
        raise ValueError(f"the packet has {len(roots)} elements rdf:RDF; expected one")
    return document, roots[0]


def _descriptions(rdf: "Element") -> "list[Element]":
    elements = _child_elements(rdf)
    return [child for child in elements if (child.namespaceURI, child.localName) == (_RDF_NS, "Description")]


def _restore(text: str) -> str:
    return text.translate({ord(stand_in): character for stand_in, character in _STAND_INS.items()})


def _protect_line_ends(document: "Document") -> None:
    """Replace line ends and tabs that a parser would normalise by stand-ins. Raise ValueError for a too deep tree."""
    level: list[Any] = list(document.childNodes)
    for _ in range(_MAX_DEPTH):
        for node in level:
            if node.nodeType == node.TEXT_NODE:
                node.data = node.data.replace("\r", "\U000f000d")
            for attribute in (node.attributes or {}).values():
                for stand_in, character in _STAND_INS.items():
                    attribute.value = attribute.value.replace(character, stand_in)
        level = [child for node in level for child in node.childNodes]
    if level:
        raise ValueError(f"the elements are nested more than {_MAX_DEPTH} levels deep")


def _child_elements(parent: "Element") -> "list[Element]":
    return [child for child in parent.childNodes if child.nodeType == child.ELEMENT_NODE]

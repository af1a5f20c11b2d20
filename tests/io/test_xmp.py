"""XMP packets: what editing keeps, compared through ElementTree, and packets that are damaged or hostile."""

from xml.etree import ElementTree

import pytest

from chromabox.io.xmp import (
    CHROMABOX_NS,
    EXIF_NS,
    IPTC_EXTENSION_NS,
    MAX_XMP_NODES,
    TIFF_NS,
    edit_xmp,
    read_xmp,
)

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
# The prefix of RDF is unusual; attributes contain characters that a parser would normalise.
PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Scanner 3"><r:RDF xmlns:r="{RDF}"><!-- by hand -->
<r:Description r:about="uuid:7" xmlns:tiff="{TIFF_NS}" xmlns:note="urn:note:" tiff:Orientation="6"
 tiff:Make="Maker" note:text="line 1&#10;line 2&#9;&quot;&lt;&amp;">
<dc:title xmlns:dc="{DC}"><r:Alt><r:li xml:lang="x-default">Größe &#13;
1932</r:li></r:Alt></dc:title></r:Description>
<r:Description r:about="uuid:7" xmlns:e="{EXIF_NS}"><e:PixelXDimension>640</e:PixelXDimension></r:Description>
</r:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()


def flatten(packet: bytes) -> list[tuple[str, tuple[tuple[str, str], ...], str]]:
    """Return the name, attributes and text of every element."""
    elements = ElementTree.fromstring(packet).iter()
    return [(element.tag, tuple(sorted(element.attrib.items())), element.text or "") for element in elements]


def test_properties_are_read_from_attributes_and_elements() -> None:
    properties = read_xmp(PACKET)
    assert properties[TIFF_NS, "Orientation"] == "6"
    assert properties[EXIF_NS, "PixelXDimension"] == "640"
    assert properties["urn:note:", "text"] == 'line 1\nline 2\t"<&'
    assert properties[DC, "title"] == ""  # a list


def test_editing_keeps_everything_else() -> None:
    edited = edit_xmp(PACKET, {(TIFF_NS, "Orientation"): None, (EXIF_NS, "PixelXDimension"): "480"})
    assert read_xmp(edited) == {
        **{name: value for name, value in read_xmp(PACKET).items() if name != (TIFF_NS, "Orientation")},
        (EXIF_NS, "PixelXDimension"): "480",
    }
    before, after = flatten(PACKET), flatten(edited)
    # All elements but the changed one are as before; the changed one is now an attribute of a new element.
    kept = [element for element in before if "PixelX" not in element[0] and "Description" not in element[0]]
    assert [element for element in after if "Description" not in element[0]] == kept
    assert b"<!-- by hand -->" in edited
    assert b'id="W5M0MpCehiHzreSzNTczkc9d"' in edited
    assert f"{{{RDF}}}about" in dict(after[-1][1])
    assert dict(after[-1][1])[f"{{{RDF}}}about"] == "uuid:7"


def test_without_changes_the_content_is_the_same() -> None:
    assert flatten(edit_xmp(PACKET, {})) == flatten(PACKET)
    assert flatten(edit_xmp(PACKET.decode().encode("utf-16"), {})) == flatten(PACKET)
    assert flatten(edit_xmp(PACKET + b"\n" * 2000 + b"\0", {})) == flatten(PACKET)


def test_repeated_edits_do_not_grow_the_packet() -> None:
    changes = {(CHROMABOX_NS, "Version"): "1", (IPTC_EXTENSION_NS, "DigitalSourceType"): 'a"<&'}
    once = edit_xmp(PACKET, changes)
    assert edit_xmp(once, changes) == once
    assert read_xmp(edit_xmp(None, changes)) == changes


@pytest.mark.parametrize(
    "packet",
    [
        b" ",
        b"text",
        b"<a/>",
        b"<a>" * 1000,
        b"\xff\xfe<",
        b'<?xml version="1.0" encoding="unknown"?><a/>',
        b"<!DOCTYPE a [<!ENTITY b 'bbbb'><!ENTITY c '&b;&b;&b;'>]><a>&c;</a>",
        b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        f'<r:RDF xmlns:r="{RDF}">'.encode() + b"<a>" * 5000 + b"</a>" * 5000 + b"</r:RDF>",
        f'<r:RDF xmlns:r="{RDF}">'.encode() + b"<a/>" * MAX_XMP_NODES + b"</r:RDF>",
        f'<a><r:RDF xmlns:r="{RDF}"/><r:RDF xmlns:r="{RDF}"/></a>'.encode(),
    ],
    ids=[
        "blank",
        "text",
        "no-rdf",
        "unclosed",
        "utf-16",
        "encoding",
        "entities",
        "external",
        "deep",
        "many",
        "two-rdf",
    ],
)
def test_damaged_and_hostile_packets_raise_value_error(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r"packet|DTD|Entit|nested"):
        read_xmp(packet)
    with pytest.raises(ValueError, match=r"packet|DTD|Entit|nested"):
        edit_xmp(packet, {})

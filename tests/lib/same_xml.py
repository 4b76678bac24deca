"""same_xml.py BEFORE AFTER [ALLOWED…]: two definitions say the same, whatever their order of attributes and white space.

An oracle that is not ours: it compares the trees, and prints each difference as `path: before -> after`. A difference
whose line begins with one of ALLOWED is expected; every ALLOWED must be used."""
import sys
import xml.etree.ElementTree as tree


def canonical(element):
    text = (element.text or "").strip()
    return (element.tag, tuple(sorted(element.attrib.items())), text)


def differences(path, one, two):
    if canonical(one) != canonical(two):
        yield f"{path}: {canonical(one)[1:]} -> {canonical(two)[1:]}"
    if [child.tag for child in one] != [child.tag for child in two]:
        yield f"{path}/*: {[child.tag for child in one]} -> {[child.tag for child in two]}"
        return
    seen = {}
    for first, second in zip(one, two):
        seen[first.tag] = seen.get(first.tag, 0) + 1
        yield from differences(f"{path}/{first.tag}[{seen[first.tag]}]", first, second)


allowed = sys.argv[3:]
used = set()
bad = []
for line in differences("domain", tree.parse(sys.argv[1]).getroot(), tree.parse(sys.argv[2]).getroot()):
    excuse = [word for word in allowed if line.startswith(word)]
    used.update(excuse)
    if not excuse:
        bad.append(line)
bad += [f"expected and not there: {word}" for word in allowed if word not in used]
for line in bad:
    print(line)
sys.exit(bool(bad))

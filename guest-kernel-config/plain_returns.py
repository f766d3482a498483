"""Makes the returns of a linked guest kernel plain RETs, as most CPUs want them.

A kernel with MITIGATION_RETHUNK returns by a jump to a thunk, and at each boot patches all 29,000 of them. Here it is done once, in the
image; patch 0003 has the kernel make them jumps again where the CPU needs a thunk. objtool's table of sites (.return_sites: offsets of
32 bits, each from its own place) is put in order, those left alone first, and their number goes into the variable returns_left.
"""

import mmap
import struct

JMP32 = 0xE9
RET_INT3 = bytes([0xC3, 0xCC, 0xCC, 0xCC, 0xCC])


class Image:
    """A 64-bit little-endian ELF file: its sections and symbols, and bytes by address."""

    def __init__(self, data):
        self.data = data
        offset, count, names = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<2xHH", data, 58)
        headers = [struct.unpack_from("<IIQQQQII16x", data, offset + 64 * index) for index in range(count)]
        string = lambda table, at: data[table[4] + at : data.find(b"\0", table[4] + at)].decode()
        self.sections = {string(headers[names], header[0]): header for header in headers}
        self.loaded = [header for header in headers if header[1] == 1 and header[3]]  # SHT_PROGBITS with an address
        table = self.sections[".symtab"]
        strings = headers[table[6]]
        entries = struct.iter_unpack("<IBBHQQ", data[table[4] : table[4] + table[5]])
        wanted = {b"__x86_return_thunk", b"__static_call_text_start", b"__static_call_text_end", b"returns_left"}
        names = data[strings[4] : strings[4] + strings[5]]
        self.symbols = {}
        for name, _, _, _, value, _ in entries:
            text = names[name : names.index(0, name)]
            if text in wanted:
                self.symbols[text.decode()] = value

    def offset(self, address):
        """Where in the file the byte at `address` is; None if it is in none of its sections."""
        for header in self.loaded:
            if header[3] <= address < header[3] + header[5]:
                return header[4] + address - header[3]
        return None


def make_plain(path):
    """Changes the vmlinux at `path`, if it has such sites."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:  # in place: holes stay holes
        image = Image(data)
        if ".return_sites" in image.sections:
            make_plain_in(image)


def make_plain_in(image):
    """The same for an image; returns how many returns are plain now and how many were left."""
    thunk, left_count = image.symbols["__x86_return_thunk"], image.offset(image.symbols["returns_left"])
    static_calls = range(image.symbols["__static_call_text_start"], image.symbols["__static_call_text_end"])
    header = image.sections[".return_sites"]
    table, start, count = header[4], header[3], header[5] // 4
    plain, left = [], []
    for index in range(count):
        site = start + 4 * index + struct.unpack_from("<i", image.data, table + 4 * index)[0]
        offset = image.offset(site)
        target = site + 5 + struct.unpack_from("<i", image.data, offset + 1)[0]
        if image.data[offset] == JMP32 and target == thunk and site not in static_calls:
            image.data[offset : offset + 5] = RET_INT3
            plain.append(site)
        else:
            left.append(site)
    for index, site in enumerate(left + plain):
        struct.pack_into("<i", image.data, table + 4 * index, site - start - 4 * index)
    struct.pack_into("<I", image.data, left_count, len(left))
    return len(plain), len(left)

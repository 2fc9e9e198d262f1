/** Which photographs are stored upright: headers as cameras write them. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { isUpright } from "../../web/editor/orientation.js";

const JFIF = [0xff, 0xe0, 0, 16, 0x4a, 0x46, 0x49, 0x46, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0];
const SCAN = [0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0];

/** A JPEG's beginning with an EXIF part of two entries, the second one being the orientation. */
function jpeg(orientation, isLittle, before = []) {
  const number = (value, size) => {
    const bytes = Array.from({ length: size }, (_, i) => (value >> (8 * (size - 1 - i))) & 255);
    return isLittle ? bytes.reverse() : bytes;
  };
  const entry = (tag, type, value) => [...number(tag, 2), ...number(type, 2), ...number(1, 4), ...number(value, 2), 0, 0];
  const tiff = [...(isLittle ? [0x49, 0x49] : [0x4d, 0x4d]), ...number(42, 2), ...number(8, 4), ...number(2, 2), ...entry(0x0100, 3, 640), ...entry(0x0112, 3, orientation), ...number(0, 4)];
  const exif = [0x45, 0x78, 0x69, 0x66, 0, 0, ...tiff];
  return new Uint8Array([0xff, 0xd8, ...before, 0xff, 0xe1, (exif.length + 2) >> 8, (exif.length + 2) & 255, ...exif, ...SCAN]);
}

for (const isLittle of [true, false]) {
  for (const orientation of [1, 3, 6, 8]) {
    test(`orientation ${orientation}, ${isLittle ? "little" : "big"} endian`, () => {
      assert.equal(isUpright(jpeg(orientation, isLittle)), orientation === 1);
      assert.equal(isUpright(jpeg(orientation, isLittle, JFIF)), orientation === 1, "behind another part");
    });
  }
}

test("what says nothing is upright: a JPEG without EXIF, a PNG, a file that breaks off", () => {
  const cut = jpeg(6, true);
  for (const bytes of [[0xff, 0xd8, ...JFIF, ...SCAN], [0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10], [], cut.slice(0, 20)]) {
    assert.equal(isUpright(new Uint8Array(bytes)), true);
  }
});

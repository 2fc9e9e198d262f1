/** Whether a photograph is stored upright, by the orientation in the EXIF part of a JPEG. No DOM. */

const [START, APP1, SCAN] = [0xffd8, 0xffe1, 0xffda];
const EXIF = [0x45, 0x78, 0x69, 0x66, 0, 0]; // "Exif", 0, 0
const ORIENTATION = 0x0112;
const UPRIGHT = 1;

/**
 * @param {Uint8Array} bytes  the beginning of a file
 * @returns {boolean}  false where a JPEG says that its pixels are to be turned or mirrored
 */
export function isUpright(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (view.getUint16(0) !== START) return true;
    for (let at = 2; view.getUint16(at) !== SCAN; at += 2 + view.getUint16(at + 2)) {
      const isExif = view.getUint16(at) === APP1 && EXIF.every((byte, i) => bytes[at + 4 + i] === byte);
      if (isExif) return orientationOf(view, at + 4 + EXIF.length) === UPRIGHT;
    }
    return true;
  } catch (error) {
    if (error instanceof RangeError) return true; // it ends before it says anything
    throw error;
  }
}

/** The orientation in a TIFF header that begins at a place, 1 to 8. */
function orientationOf(view, start) {
  const isLittle = view.getUint16(start) === 0x4949; // "II"
  const number = (at) => view.getUint16(start + at, isLittle);
  const first = view.getUint32(start + 4, isLittle);
  for (let entry = first + 2, left = number(first); left > 0; entry += 12, left -= 1) if (number(entry) === ORIENTATION) return number(entry + 8);
  return UPRIGHT;
}

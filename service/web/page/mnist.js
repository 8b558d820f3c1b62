/** What was done to the digits of MNIST: scaled into a box of 20×20, and centred by mass in 28×28. */

const SIDE = 28;
const BOX = 20;
const INK = 0.1;

/**
 * Whether a model's data are MNIST's own.
 * @param {any} manifest
 * @returns {boolean}
 */
export function isMnist(manifest) {
  const { channels, height, width } = manifest.image;
  return (
    channels === 1 && height === SIDE && width === SIDE && /^mnist\b(?!-)/i.test(manifest.provenance?.data_set ?? "")
  );
}

/**
 * The drawing as MNIST would have it.
 * @param {{data: Float32Array, height: number, width: number}} drawing in [0, 1]
 * @returns {Uint8Array|null} [28, 28]; null if it is empty
 */
export function fitted(drawing) {
  const box = boundingBox(drawing);
  if (!box) return null;
  const scale = BOX / Math.max(box.height, box.width);
  const height = Math.max(1, Math.round(box.height * scale));
  const width = Math.max(1, Math.round(box.width * scale));
  const small = averaged(drawing, box, height, width);
  const [mass, y, x] = centre(small, height, width);
  const top = placed(y / mass, height);
  const left = placed(x / mass, width);
  const pixels = new Uint8Array(SIDE * SIDE);
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++)
      pixels[(top + row) * SIDE + left + column] = Math.round(255 * Math.min(1, small[row * width + column]));
  return pixels;
}

/** Where a part of this length begins, so that its centre of mass is in the middle, and all of it inside. */
function placed(/** @type {number} */ middle, /** @type {number} */ length) {
  return Math.max(0, Math.min(SIDE - length, Math.round(SIDE / 2 - middle)));
}

function boundingBox({ data, height, width }) {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (data[y * width + x] > INK) {
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
        left = Math.min(left, x);
        right = Math.max(right, x);
      }
  return bottom < 0 ? null : { top, left, height: bottom - top + 1, width: right - left + 1 };
}

/** The box, resampled: each new pixel is the mean of what it covers. */
function averaged(drawing, box, height, width) {
  const small = new Float32Array(height * width);
  const [tall, wide] = [box.height / height, box.width / width];
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      let sum = 0;
      for (let y = Math.floor(row * tall); y < Math.min(box.height, (row + 1) * tall); y++) {
        const down = Math.min(y + 1, (row + 1) * tall) - Math.max(y, row * tall);
        for (let x = Math.floor(column * wide); x < Math.min(box.width, (column + 1) * wide); x++) {
          const across = Math.min(x + 1, (column + 1) * wide) - Math.max(x, column * wide);
          sum += down * across * drawing.data[(box.top + y) * drawing.width + box.left + x];
        }
      }
      small[row * width + column] = sum / (tall * wide);
    }
  return small;
}

/** Mass, and first moments down and across, of pixels whose middles are at a half. */
function centre(pixels, height, width) {
  let [mass, down, across] = [0, 0, 0];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const weight = pixels[y * width + x];
      mass += weight;
      down += weight * (y + 0.5);
      across += weight * (x + 0.5);
    }
  return [mass, down, across];
}

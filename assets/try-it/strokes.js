/* Strokes of a pen: as an image for the network, and the sample letters.

   A drawing is a list of strokes, a stroke a list of points [x, y] on a paper of side 1, with y
   downwards. */
"use strict";

var TryIt = TryIt || {};

TryIt.strokes = (() => {
  const SIDE = 16; // pixels, as tlhelpers.characters.GLYPH_SIZE
  const FINE = 2; // subpixels to a pixel along each axis, as characters.MASK_SCALE
  // Pen and size, in pixels of the image. Chosen on Armenian letters, which the network has not
  // learnt: widths of 1 to 1.75 did alike, larger ones and lengths of 15 and
  // 16 a point or more worse.
  const PEN = 1.5;
  const LENGTH = 13; // of the longer side, with the pen's width
  // A drawing smaller than this share of the paper is a dot: its tremor is not blown up.
  const DOT = 0.03;

  /** The smallest box around all points: {left, top, width, height}. */
  function box(drawing) {
    const points = drawing.flat();
    const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    return { left, top, width: Math.max(...xs) - left, height: Math.max(...ys) - top };
  }

  /** A drawing moved and scaled to the middle of the image, in pixels, whatever its size was.
      So were the printed letters that the network learnt (characters.mask). */
  function placed(drawing, { pen, length }) {
    const { left, top, width, height } = box(drawing);
    const scale = (length - pen) / Math.max(width, height, DOT);
    const middle = [left + width / 2, top + height / 2];
    return drawing.map((stroke) =>
      stroke.map((point) => point.map((at, axis) => (at - middle[axis]) * scale + SIDE / 2)),
    );
  }

  /** The drawing as the network's image: 16 x 16 numbers, row by row, 0 paper to 1 ink.

      The ink of a subpixel is how far it lies within half a pen's width of the nearest line, from
      0 to 1 over the width of a subpixel. It is computed, and not taken from a canvas, because
      browsers smooth lines and shrink pictures each in its own way. */
  function image(drawing, { pen = PEN, length = LENGTH } = {}) {
    const side = SIDE * FINE;
    const ink = new Float64Array(side * side);
    const radius = (pen / 2) * FINE;
    for (const stroke of placed(drawing, { pen, length })) {
      const points = stroke.map(([x, y]) => [x * FINE, y * FINE]);
      if (points.length === 1) points.push(points[0]);
      for (let i = 1; i < points.length; i++) drawLine(ink, side, points[i - 1], points[i], radius);
    }
    const pixels = new Float64Array(SIDE * SIDE);
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++)
        pixels[Math.floor(y / FINE) * SIDE + Math.floor(x / FINE)] +=
          ink[y * side + x] / (FINE * FINE);
    return pixels;
  }

  /** Draw a line with round ends; where lines cross the ink does not add up. */
  function drawLine(ink, side, [ax, ay], [bx, by], radius) {
    const reach = radius + 1;
    const range = (a, b) => [
      Math.max(0, Math.floor(Math.min(a, b) - reach)),
      Math.min(side - 1, Math.ceil(Math.max(a, b) + reach)),
    ];
    const [left, right] = range(ax, bx);
    const [top, bottom] = range(ay, by);
    const [dx, dy] = [bx - ax, by - ay];
    const squared = dx * dx + dy * dy;
    for (let y = top; y <= bottom; y++)
      for (let x = left; x <= right; x++) {
        const [px, py] = [x + 0.5 - ax, y + 0.5 - ay];
        const t = squared ? Math.min(1, Math.max(0, (px * dx + py * dy) / squared)) : 0;
        const distance = Math.hypot(px - t * dx, py - t * dy);
        const covered = Math.min(1, Math.max(0, radius - distance + 0.5));
        const at = y * side + x;
        ink[at] = Math.max(ink[at], covered);
      }
  }

  // --- sample letters -----------------------------------------------------------------------

  /* Made up for this page: points on a paper of side 1, through which a pen goes in a curve. A
     point that stands twice is a corner. */
  const SAMPLES = {
    gate: [
      [[0.15, 0.95], [0.15, 0.1], [0.15, 0.1], [0.85, 0.1], [0.85, 0.1], [0.85, 0.95]],
      [[0.5, 0.5], [0.5, 0.62]],
    ],
    fish: [[[0.95, 0.2], [0.62, 0.5], [0.32, 0.76], [0.08, 0.5], [0.32, 0.24], [0.62, 0.5],
      [0.95, 0.8]]],
    key: [
      [[0.45, 0.4], [0.25, 0.22], [0.45, 0.05], [0.65, 0.22], [0.45, 0.4], [0.45, 0.95]],
      [[0.45, 0.7], [0.72, 0.7]],
      [[0.45, 0.95], [0.78, 0.95]],
    ],
    waves: [
      [[0.05, 0.32], [0.27, 0.15], [0.5, 0.3], [0.73, 0.45], [0.95, 0.28]],
      [[0.05, 0.75], [0.27, 0.58], [0.5, 0.73], [0.73, 0.88], [0.95, 0.71]],
    ],
    tree: [
      [[0.5, 0.95], [0.5, 0.05]],
      [[0.15, 0.15], [0.3, 0.38], [0.5, 0.45], [0.7, 0.38], [0.85, 0.15]],
      [[0.15, 0.5], [0.3, 0.72], [0.5, 0.78], [0.7, 0.72], [0.85, 0.5]],
    ],
    snail: [[[0.52, 0.52], [0.62, 0.46], [0.6, 0.64], [0.42, 0.64], [0.34, 0.46], [0.5, 0.28],
      [0.76, 0.36], [0.82, 0.64], [0.6, 0.9], [0.28, 0.88], [0.05, 0.92]]],
    sail: [
      [[0.45, 0.75], [0.45, 0.05], [0.45, 0.05], [0.88, 0.55], [0.88, 0.55], [0.45, 0.55]],
      [[0.08, 0.75], [0.25, 0.95], [0.7, 0.95], [0.92, 0.75]],
    ],
    stairs: [[[0.05, 0.95], [0.05, 0.65], [0.05, 0.65], [0.36, 0.65], [0.36, 0.65], [0.36, 0.35],
      [0.36, 0.35], [0.66, 0.35], [0.66, 0.35], [0.66, 0.05], [0.66, 0.05], [0.95, 0.05]]],
    arch: [[[0.15, 0.95], [0.15, 0.1], [0.15, 0.1], [0.85, 0.1], [0.85, 0.1], [0.85, 0.95]]],
  };

  /** Random numbers in -1..1 that are the same for the same seed (mulberry32). */
  function randomness(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
    };
  }

  /** The curve through the points of a stroke (Catmull-Rom). */
  function curved(points, steps = 6) {
    const at = (i) => points[Math.min(points.length - 1, Math.max(0, i))];
    const out = [];
    for (let i = 0; i + 1 < points.length; i++)
      for (let step = 0; step < steps; step++) {
        const t = step / steps;
        const weights = [
          -t + 2 * t * t - t ** 3,
          2 - 5 * t * t + 3 * t ** 3,
          t + 4 * t * t - 3 * t ** 3,
          -t * t + t ** 3,
        ];
        out.push([0, 1].map((axis) =>
          weights.reduce((sum, w, j) => sum + (w / 2) * at(i - 1 + j)[axis], 0)));
      }
    out.push(at(points.length - 1));
    return out;
  }

  /** The points after a change of width, a lean and a turn about the middle of the paper. */
  function turned(drawing, { width = 1, lean = 0, degrees = 0 }) {
    const angle = (degrees * Math.PI) / 180;
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    return drawing.map((stroke) =>
      stroke.map(([x, y]) => {
        const across = width * (x - 0.5) - lean * (y - 0.5);
        return [0.5 + cos * across - sin * (y - 0.5), 0.5 + sin * across + cos * (y - 0.5)];
      }),
    );
  }

  /** A sample letter: 0 as it was designed, any other number another hand. Points, width, lean and
      turn are drawn at random, the same ones each time. */
  function sample(name, hand = 0) {
    const letter = SAMPLES[name];
    if (hand === 0) return fitted(letter.map((stroke) => curved(stroke)));
    const order = Object.keys(SAMPLES).indexOf(name);
    const random = randomness(1000 * order + hand);
    const change = { width: 1 + 0.2 * random(), lean: 0.2 * random(), degrees: 10 * random() };
    const moved = letter.map((stroke) => {
      let last = null; // the two points of a corner move together
      return stroke.map((point) => {
        const same = last && last.from[0] === point[0] && last.from[1] === point[1];
        const to = same ? last.to : point.map((at) => at + 0.06 * random());
        last = { from: point, to };
        return to;
      });
    });
    return fitted(turned(moved.map((stroke) => curved(stroke)), change));
  }

  /** The drawing moved, and shrunk where it must be, into the paper of side 1 with a margin. */
  function fitted(drawing) {
    const { left, top, width, height } = box(drawing);
    const scale = Math.min(1, 0.8 / Math.max(width, height));
    return drawing.map((stroke) =>
      stroke.map(([x, y]) => [
        0.5 + scale * (x - left - width / 2),
        0.5 + scale * (y - top - height / 2),
      ]),
    );
  }

  return { SIDE, image, sample, turned, randomness, names: Object.keys(SAMPLES) };
})();

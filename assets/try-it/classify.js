/* Nearest prototype, as in chapter 11, and what can be said of it by trying. */
"use strict";

var TryIt = TryIt || {};

TryIt.prototypes = (() => {
  /** The mean of feature vectors. */
  function mean(vectors) {
    return vectors[0].map((_, i) => vectors.reduce((sum, v) => sum + v[i], 0) / vectors.length);
  }

  function squaredDistance(a, b) {
    return a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0);
  }

  /** For each class its squared distance from the query, and the softmax of minus these.
      `support` holds a list of feature vectors for each class. */
  function classify(support, query) {
    const distances = support.map((vectors) => squaredDistance(mean(vectors), query));
    const least = Math.min(...distances); // else exp would be 0 for all
    const weights = distances.map((distance) => Math.exp(least - distance));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return {
      distances,
      shares: weights.map((weight) => weight / total),
      nearest: distances.indexOf(least),
    };
  }

  return { classify };
})();

TryIt.trial = (() => {
  const { sample, image, turned, names } = TryIt.strokes;
  const LOOK_ALIKE = ["gate", "arch"];
  const HANDS = 20; // drawings of each sample letter

  /** The trials: letters, examples of each, how many of these are drawings of another letter, and
      what is done to the drawings to be recognised. */
  const TRIALS = [
    { words: "five letters, one example of each", ways: 5, shots: 1 },
    { words: "five letters, five examples of each", ways: 5, shots: 5 },
    { words: "the same, one of the five wrong", ways: 5, shots: 5, wrong: 1 },
    { words: "one example, the new drawing a tenth of the size", ways: 5, shots: 1, query: "tiny" },
    { words: "one example, the new drawing turned by 90°", ways: 5, shots: 1, query: "turned" },
    { words: "gate or fish, one example of each", of: ["gate", "fish"], shots: 1 },
    { words: "gate or arch, one example of each", of: LOOK_ALIKE, shots: 1 },
    { words: "gate or arch, five examples of each", of: LOOK_ALIKE, shots: 5 },
  ];
  const CHANGES = {
    as: (drawing) => drawing,
    tiny: (drawing) => drawing.map((stroke) => stroke.map((point) => point.map((at) => at / 10))),
    turned: (drawing) => turned(drawing, { degrees: 90 }),
  };

  /** The features of all sample drawings, by change, letter and hand. */
  function embedded(network) {
    return Object.fromEntries(
      Object.entries(CHANGES).map(([change, apply]) => [
        change,
        names.map((name) =>
          Array.from({ length: HANDS }, (_, hand) =>
            network.features(image(apply(sample(name, hand + 1))))),
        ),
      ]),
    );
  }

  /** `count` different numbers below n, at random. */
  function drawn(n, count, random) {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = 0; i < count; i++) {
      const j = i + Math.floor(random() * (n - i));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order.slice(0, count);
  }

  /** Whether one query of a trial, with letters and drawings at random, is recognised. */
  function isRight(features, trial, random) {
    const among = trial.of ? trial.of.map((name) => names.indexOf(name)) : names.map((_, i) => i);
    const letters = drawn(among.length, trial.ways ?? among.length, random).map((i) => among[i]);
    let asked = null;
    const support = letters.map((letter, way) => {
      const hands = drawn(HANDS, trial.shots + 1, random);
      const examples = hands.slice(1).map((hand) => features.as[letter][hand]);
      if (trial.wrong) {
        const other = (letter + 1 + Math.floor(random() * (names.length - 1))) % names.length;
        examples[0] = features.as[other][hands[1]];
      }
      if (way === 0) asked = features[trial.query ?? "as"][letter][hands[0]];
      return examples;
    });
    return TryIt.prototypes.classify(support, asked).nearest === 0;
  }

  /** The share of right answers in each trial: [{words, accuracy}], over `count` drawings. */
  function run(features, count = 2000) {
    return TRIALS.map((trial, i) => {
      const signed = TryIt.strokes.randomness(i < 5 ? 1 : 2);
      const random = () => (signed() + 1) / 2;
      let right = 0;
      for (let n = 0; n < count; n++) right += isRight(features, trial, random);
      return { words: trial.words, accuracy: right / count };
    });
  }

  return { embedded, run };
})();

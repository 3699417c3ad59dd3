/* Nearest prototype, as in chapter 11, and what can be said of it by trying. */
"use strict";

var TryIt = TryIt || {};

TryIt.prototypes = (() => {
  // Of the softmax, on which it decides how sure an answer sounds. It had the smallest
  // cross-entropy on drawn Armenian letters, five at a time, with one example of each.
  const TEMPERATURE = 13;

  /** The mean of feature vectors. */
  function mean(vectors) {
    return vectors[0].map((_, i) => vectors.reduce((sum, v) => sum + v[i], 0) / vectors.length);
  }

  function squaredDistance(a, b) {
    return a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0);
  }

  /** The softmax of minus the distances, divided by the temperature. */
  function softmax(distances, temperature = TEMPERATURE) {
    const least = Math.min(...distances); // else exp would be 0 for all
    const weights = distances.map((distance) => Math.exp((least - distance) / temperature));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  }

  /** For each class its squared distance from the query and its share of the softmax, and which is
      the nearest. `support` holds a list of feature vectors for each class. */
  function classify(support, query) {
    const distances = support.map((vectors) => squaredDistance(mean(vectors), query));
    const nearest = distances.indexOf(Math.min(...distances));
    return { distances, shares: softmax(distances), nearest };
  }

  return { classify, softmax };
})();

TryIt.trial = (() => {
  const { sample, image, turned, randomness, names } = TryIt.strokes;
  const LOOK_ALIKE = ["gate", "arch"];
  const HANDS = 20; // drawings of each sample letter
  const STUDENT = { 8: 2.306 }; // 97.5 % quantile of Student's t, by degrees of freedom: nine letters

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

  /** The features of all sample drawings, by change, letter and hand. It takes some seconds, and
      pauses after each letter to call `progress`, so that the page stays alive. */
  async function embedded(network, progress) {
    const features = Object.fromEntries(Object.keys(CHANGES).map((change) => [change, []]));
    for (const [i, name] of names.entries()) {
      progress(i / names.length);
      await new Promise((resolve) => setTimeout(resolve, 10));
      const hands = Array.from({ length: HANDS }, (_, hand) => sample(name, hand + 1));
      for (const [change, apply] of Object.entries(CHANGES))
        features[change].push(hands.map((hand) => network.features(image(apply(hand)))));
    }
    return features;
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

  /** A question of a trial, with letters and drawings at random: its letters, and whether the query,
      a drawing of the first of them, is recognised. */
  function question(features, trial, random) {
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
    return { letters, isRight: TryIt.prototypes.classify(support, asked).nearest === 0 };
  }

  /** The share of right answers: {accuracy, low, high}. The interval is over the choice of the
      letters (95 %, jackknife, as tlhelpers.fewshot.Result.over_classes); null where each question
      has the same letters. */
  function estimate(questions) {
    const share = (some) => some.filter(({ isRight }) => isRight).length / some.length;
    const accuracy = share(questions);
    const all = [...new Set(questions.flatMap(({ letters }) => letters))];
    const without = all.map((letter) => questions.filter(({ letters }) => !letters.includes(letter)));
    if (without.some((some) => !some.length)) return { accuracy, low: null, high: null };
    const m = all.length;
    const squares = without.reduce((sum, some) => sum + (share(some) - accuracy) ** 2, 0);
    const half = STUDENT[m - 1] * Math.sqrt(((m - 1) / m) * squares);
    return { accuracy, low: Math.max(0, accuracy - half), high: Math.min(1, accuracy + half) };
  }

  /** The trials, each with `count` questions: [{words, accuracy, low, high}]. */
  function run(features, count = 2000) {
    return TRIALS.map((trial) => {
      const signed = randomness(1); // the same questions wherever two trials can have them
      const random = () => (signed() + 1) / 2;
      const questions = Array.from({ length: count }, () => question(features, trial, random));
      return { words: trial.words, ...estimate(questions) };
    });
  }

  return { embedded, estimate, run };
})();

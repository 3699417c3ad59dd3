/* The page "Try it yourself": two sheets of paper, the letters with their examples, the answer.

   Nothing leaves the browser: no script here asks for an address. */
"use strict";

var TryIt = TryIt || {};

TryIt.page = (() => {
  const { SIDE, image, sample, names } = TryIt.strokes;
  const [FEWEST, MOST] = [2, 5]; // letters
  const EXAMPLES = 5; // of a letter, at most
  const PAPER = "#ffffff";
  const INK = "#1a1a1a";
  const PEN = 0.035; // on the paper, whose side is 1

  /** An element with attributes and children. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function button(text, action, attributes = {}) {
    const made = element("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", action);
    return made;
  }

  /** A canvas with the 16 x 16 image that the network gets, or an empty one. */
  function showImage(canvas, pixels) {
    canvas.width = canvas.height = SIDE;
    const context = canvas.getContext("2d");
    const shown = context.createImageData(SIDE, SIDE);
    for (let i = 0; i < SIDE * SIDE; i++) {
      const grey = Math.round(255 * (1 - (pixels ? pixels[i] : 0)));
      shown.data.set([grey, grey, grey, 255], 4 * i);
    }
    context.putImageData(shown, 0, 0);
  }

  // --- a sheet of paper ---------------------------------------------------------------------

  /** Paper to draw on, with buttons, in `place`. `changed` is called after each stroke.
      `hand` is the first of the hands in which its samples are written: those of the two sheets
      differ, or the network would be asked for the very drawing that it was shown. */
  function sheet(place, { label, hand, changed }) {
    let drawing = [];
    let pointer = null; // that draws; a second finger does nothing
    const canvas = element("canvas", { role: "img", class: "tl-try-paper" });
    const seen = element("canvas", { role: "img", class: "tl-try-seen" });
    const choice = element("select", { "aria-label": `${label}: a sample letter` });
    choice.append(...names.map((name) => element("option", { value: name }, name)));

    function shown() {
      const side = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)) || 300;
      canvas.width = canvas.height = side;
      const context = canvas.getContext("2d");
      context.fillStyle = PAPER;
      context.fillRect(0, 0, side, side);
      context.strokeStyle = INK;
      context.lineWidth = PEN * side;
      context.lineCap = context.lineJoin = "round";
      for (const stroke of drawing) {
        context.beginPath();
        context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
        for (const [x, y] of stroke) context.lineTo(x * side, y * side);
        context.stroke();
      }
      const count = drawing.length === 1 ? "1 stroke" : `${drawing.length || "no"} strokes`;
      canvas.setAttribute("aria-label", `${label}: ${count}`);
      seen.setAttribute("aria-label", `${label}: what the network sees, ${SIDE} by ${SIDE} pixels`);
      showImage(seen, drawing.length ? image(drawing) : null);
    }

    function set(strokes) {
      drawing = strokes;
      shown();
      changed(drawing);
    }

    function pointOf(event) {
      const box = canvas.getBoundingClientRect();
      const inside = (at) => Math.min(1, Math.max(0, at));
      return [
        inside((event.clientX - box.left) / box.width),
        inside((event.clientY - box.top) / box.height),
      ];
    }

    canvas.addEventListener("pointerdown", (event) => {
      if (pointer !== null || event.button !== 0) return;
      event.preventDefault();
      pointer = event.pointerId;
      canvas.setPointerCapture(pointer);
      drawing = [...drawing, [pointOf(event)]];
      shown();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== pointer) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      drawing.at(-1).push(...(passed.length ? passed : [event]).map(pointOf));
      shown();
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, (event) => {
        if (event.pointerId !== pointer) return;
        pointer = null;
        changed(drawing);
      });
    new ResizeObserver(shown).observe(canvas);

    place.append(
      element("div", { class: "tl-try-sheet" }, canvas,
        element("p", { class: "tl-try-note" }, seen, "what the network sees")),
      element("p", { class: "tl-try-buttons" },
        button("Undo stroke", () => set(drawing.slice(0, -1))),
        button("Clear", () => set([]))),
      element("p", { class: "tl-try-buttons" }, "Sample: ", choice,
        button("Write it", () => set(sample(choice.value, hand++)))),
    );
    return { set, get: () => drawing };
  }

  // --- the page -----------------------------------------------------------------------------

  function start(root, network) {
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    let letters = []; // {name, examples, and the elements that show them}
    let asked = null; // features of the new drawing

    const say = (sentence) => { part("heard").textContent = sentence; };
    const example = (drawing) => {
      const pixels = image(drawing);
      return { drawing, image: pixels, features: network.features(pixels) };
    };

    const teach = sheet(root.querySelector('[data-pad="teach"]'), {
      label: "Paper for examples",
      hand: 1,
      changed: () => {},
    });
    const ask = sheet(root.querySelector('[data-pad="ask"]'), {
      label: "Paper for the new drawing",
      hand: 501,
      changed: (drawing) => {
        asked = drawing.length ? example(drawing).features : null;
        answer();
      },
    });

    function freeName() {
      const taken = letters.map((letter) => letter.name);
      return ["A", "B", "C", "D", "E"].map((end) => `letter ${end}`)
        .find((name) => !taken.includes(name)) ?? "another letter";
    }

    function addLetter(name = freeName()) {
      const letter = { name, examples: [] };
      const input = element("input", { "aria-label": "Name of the letter", maxlength: 20 });
      input.value = name;
      input.addEventListener("input", () => {
        letter.name = input.value.trim() || "without a name";
        relabel();
      });
      letter.add = button("Add drawing", () => addExample(letter));
      letter.remove = button("Remove", () => {
        letters = letters.filter((other) => other !== letter);
        letter.card.remove();
        say(`${letter.name} removed.`);
        root.querySelector('[data-do="letter"]').focus();
        relabel();
      });
      letter.shown = element("div", { class: "tl-try-examples" });
      letter.card = element("div", { class: "tl-try-letter", role: "group" },
        element("p", { class: "tl-try-buttons" }, input, letter.add, letter.remove), letter.shown);
      part("letters").append(letter.card);
      letters.push(letter);
      relabel();
      return letter;
    }

    function addExample(letter, drawing = teach.get()) {
      if (!drawing.length) {
        say("Draw something on this paper first, or write a sample on it.");
        return;
      }
      if (letter.examples.length === EXAMPLES) {
        say(`${letter.name} has ${EXAMPLES} examples, which is the most. Delete one first.`);
        return;
      }
      letter.examples.push(example(drawing));
      teach.set([]);
      say(`Example ${letter.examples.length} of ${letter.name} added.`);
      relabel();
    }

    function deleteExample(letter, i) {
      const [{ drawing }] = letter.examples.splice(i, 1);
      const isFree = !teach.get().length;
      if (isFree) teach.set(drawing);
      const where = isFree ? "; its drawing is back on the paper." : ".";
      say(`Example ${i + 1} of ${letter.name} deleted${where}`);
      relabel();
      (letter.shown.children[Math.min(i, letter.examples.length - 1)] ?? letter.add).focus();
    }

    /** Write names, examples and limits anew after a change; the answer follows. */
    function relabel() {
      for (const letter of letters) {
        letter.card.setAttribute("aria-label", letter.name);
        letter.add.setAttribute("aria-label", `Add drawing to ${letter.name}`);
        letter.remove.setAttribute("aria-label", `Remove ${letter.name}`);
        letter.remove.disabled = letters.length === FEWEST;
        letter.shown.replaceChildren(...letter.examples.map(({ image: pixels }, i) => {
          const canvas = element("canvas", { "aria-hidden": "true" });
          showImage(canvas, pixels);
          const words = `Delete example ${i + 1} of ${letter.name}`;
          const made = button(canvas, () => deleteExample(letter, i),
            { "aria-label": words, title: words });
          made.append(element("span", { "aria-hidden": "true" }, "×"));
          return made;
        }));
      }
      root.querySelector('[data-do="letter"]').disabled = letters.length === MOST;
      // The demonstration would wipe away what is there.
      const begun = letters.some((letter) => letter.examples.length);
      root.querySelector('[data-do="start"]').disabled = begun;
      answer();
    }

    function answer() {
      const taught = letters.filter((letter) => letter.examples.length);
      part("table").hidden = taught.length < FEWEST || !asked;
      if (taught.length < FEWEST) {
        part("answer").textContent = "Two letters need an example each before there is an answer.";
        return;
      }
      if (!asked) {
        part("answer").textContent = "Now draw one of your letters here.";
        return;
      }
      const support = taught.map((letter) => letter.examples.map(({ features }) => features));
      const { distances, shares, nearest } = TryIt.prototypes.classify(support, asked);
      part("answer").replaceChildren("Nearest prototype: ",
        element("strong", {}, taught[nearest].name),
        `, squared distance ${distances[nearest].toFixed(1)}, softmax ${percent(shares[nearest])}.`);
      const farthest = Math.max(...distances, 1e-9);
      part("table").querySelector("tbody").replaceChildren(...taught.map((letter, i) =>
        element("tr", i === nearest ? { class: "tl-try-nearest" } : {},
          element("th", { scope: "row" }, letter.name),
          bar(distances[i] / farthest, distances[i].toFixed(1)),
          bar(shares[i], percent(shares[i])))));
    }

    function bar(share, words) {
      const inner = element("span", { class: "tl-try-bar", "aria-hidden": "true" });
      inner.style.width = `${100 * share}%`;
      return element("td", {}, inner, element("span", {}, words));
    }

    /** Begin with letters of these names, without examples. */
    function begin(...names) {
      letters.forEach((letter) => letter.card.remove());
      letters = [];
      teach.set([]);
      ask.set([]);
      say("");
      names.forEach((name) => addLetter(name));
    }

    function demonstrate() {
      begin("gate", "fish", "key");
      for (const letter of letters) addExample(letter, sample(letter.name, 1));
      ask.set(sample("fish", 500));
      say("Three letters have an example each, and one of them is drawn anew.");
    }

    const reset = () => begin("letter A", "letter B");
    const actions = { start: demonstrate, reset, letter: () => addLetter() };
    for (const [name, action] of Object.entries(actions))
      root.querySelector(`[data-do="${name}"]`).addEventListener("click", action);
    reset();
    root.querySelector(".tl-try-missing").remove();
    root.querySelector(".tl-try-body").hidden = false;
  }

  function percent(share) {
    if (share > 0.999 && share < 1) return "> 99.9 %";
    return share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
  }

  /** The table of trials, made where the reader asks for it. */
  function offerTrials(place, network) {
    const run = button("Measure it in this browser", async () => {
      run.disabled = true;
      const features = await TryIt.trial.embedded(network, (share) => {
        run.textContent = `Measuring … ${Math.round(100 * share)} %`;
      });
      place.querySelector("tbody").replaceChildren(...TryIt.trial.run(features).map((row) =>
        element("tr", {}, element("th", { scope: "row" }, row.words),
          element("td", {}, `${(100 * row.accuracy).toFixed(1)} %`),
          element("td", {}, row.low === null ? "–"
            : `${(100 * row.low).toFixed(1)} to ${(100 * row.high).toFixed(1)}`))));
      place.querySelector("table").hidden = false;
      run.textContent = "Measured";
    });
    place.prepend(element("p", { class: "tl-try-buttons" }, run));
  }

  const root = document.getElementById("try-it");
  if (TryIt.weights) {
    const network = TryIt.network.load(TryIt.weights);
    start(root, network);
    const trials = document.getElementById("try-it-trials");
    if (trials) offerTrials(trials, network);
  } else {
    root.querySelector(".tl-try-missing").textContent =
      "The weights of the network did not arrive (the file _static/try-it/weights.js). Reload the " +
      "page; a copy of the book that was saved to disk needs its folder _static beside it.";
  }
})();

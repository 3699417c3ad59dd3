// How the search orders what it finds. Sphinx's own weights, and two rules of the book: a heading
// that is the question comes first, and chapters come before what stands at the back.
var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  score: ([, title, , , score]) => {
    const asked = new URLSearchParams(location.search).get("q") || "";
    const heading = title.split(" > ").pop();
    if (heading.toLowerCase() === asked.trim().toLowerCase()) return score + 1000;
    return /^\d\d · /.test(title) ? score + 100 : score;
  },
};

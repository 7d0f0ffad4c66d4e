"use strict";

// Tables: a button in every heading sorts by its column.
for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      // Numbers begin with the largest, words with A.
      const first = heading.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [a, b].map((row) => row.cells[column].dataset.value);
        // What is not known comes last in both orders.
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const difference = Number(x) - Number(y);
        return sign * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
      };
      body.append(...Array.from(body.rows).sort(compare));
    });
  });
}

// Sliders between ground truth and prediction.
document.addEventListener("input", (event) => {
  const box = event.target.closest(".compare");
  if (!box) return;
  box.style.setProperty("--split", `${event.target.value}%`);
  event.target.setAttribute("aria-valuetext", `${event.target.value} % ground truth`);
});

// Pictures, enlarged.
const viewer = document.getElementById("viewer");
document.addEventListener("click", (event) => {
  const opener = event.target.closest(".enlarge");
  if (opener) {
    const figure = opener.closest("figure");
    const shown = (figure.querySelector(".compare") || figure.querySelector("img")).cloneNode(true);
    const text = document.createElement("p");
    const caption = figure.querySelector("code") || figure.querySelector("figcaption");
    text.textContent = caption.textContent;
    viewer.querySelector(".stage").replaceChildren(shown, text);
    viewer.showModal();
  } else if (event.target === viewer || event.target.closest("#viewer .close")) {
    viewer.close();
  }
});
viewer.addEventListener("close", () => viewer.querySelector(".stage").replaceChildren());

// Commands.
document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  const label = button.firstChild;
  try {
    await navigator.clipboard.writeText(code.textContent);
    label.textContent = "Copied";
  } catch {
    // A browser that does not let pages write to the clipboard: the user copies what is selected.
    getSelection().selectAllChildren(code);
    label.textContent = "Selected";
  }
  setTimeout(() => { label.textContent = "Copy"; }, 2000);
});

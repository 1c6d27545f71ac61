// Shows the claims of one verdict. Without this script all claims are shown.
{
  const chosen = document.getElementById("shown-verdict");
  const update = () => {
    let count = 0;
    for (const section of document.querySelectorAll("section.topic")) {
      let some = 0;
      for (const row of section.querySelectorAll("tbody tr")) {
        const fits = !chosen.value || (chosen.value === "measured" ? row.dataset.measured === "yes" : row.dataset.verdict === chosen.value);
        row.hidden = !fits;
        some += fits;
      }
      section.hidden = !some;
      count += some;
    }
    document.getElementById("shown").textContent = `${count} claim${count === 1 ? "" : "s"} shown`;
  };
  chosen.addEventListener("change", update);
  update();
  document.documentElement.dataset.ready = "yes";
}

// The report is printed as the browser prints any page.
document.getElementById("print").addEventListener("click", () => window.print());

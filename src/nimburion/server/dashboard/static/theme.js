// Sets the colours before the page is painted. The choice is kept in this browser only.
document.documentElement.dataset.theme = localStorage.getItem("nimburion.theme") || "system";
document.documentElement.classList.add("scripted");

// Sets the colours before the page is painted. The choice is kept in this browser only.
document.documentElement.dataset.theme = localStorage.getItem("nimburion.theme") || "system";
document.documentElement.classList.add("scripted");
// Scripts cannot send requests from an address that holds a password. The browser remembers it without.
{
  const here = new URL(document.baseURI);
  if (here.username || here.password) {
    here.username = here.password = "";
    location.replace(here);
  }
}
// A page that reports that the backend does not answer tries again.
if (document.documentElement.dataset.retry) setTimeout(() => location.reload(), document.documentElement.dataset.retry);

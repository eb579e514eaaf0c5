// Applies the chosen theme before the first paint; a module would come after it.
if (localStorage.theme) document.documentElement.dataset.theme = localStorage.theme;

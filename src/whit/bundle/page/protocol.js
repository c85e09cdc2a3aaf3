/** What the page and its worker say to each other, and the shapes that `whit.js` shows. */
export {};

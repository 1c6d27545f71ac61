"use strict";
lab.drawAll();
document.documentElement.dataset.ready = "yes";
